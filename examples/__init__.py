"""The example application, its two servers, and the benchmarks that compare them."""
