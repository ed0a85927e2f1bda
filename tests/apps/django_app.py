"""A Django project in one file: the admin, static files, and a transaction open across `yield`."""

import os
import tempfile
import threading

import django
from django.conf import settings

FOLDER = tempfile.mkdtemp(prefix="hop-django-")

settings.configure(
    DEBUG=True,
    SECRET_KEY="a key for tests",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": os.path.join(FOLDER, "db.sqlite3"),
            "OPTIONS": {"timeout": 30},
        }
    },
    INSTALLED_APPS=[
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
        "django.contrib.messages",
        "django.contrib.staticfiles",
    ],
    MIDDLEWARE=[
        "django.middleware.security.SecurityMiddleware",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ]
            },
        }
    ],
    STATIC_URL="/static/",
    DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    LOGGING_CONFIG=None,
)
django.setup()

from django.contrib import admin  # noqa: E402
from django.contrib.auth.models import User  # noqa: E402
from django.contrib.staticfiles.handlers import StaticFilesHandler  # noqa: E402
from django.core.handlers.wsgi import WSGIHandler  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import connection, transaction  # noqa: E402
from django.http import HttpResponse, StreamingHttpResponse  # noqa: E402
from django.urls import path  # noqa: E402

call_command("migrate", verbosity=0)
User.objects.create_superuser("admin", "admin@example.org", "secret")
connection.close()


def index(request):
    return HttpResponse("Hello from Django")


def rows(request):
    """A transaction that is open while the rows go out, on the thread that opened it."""
    count, pad = int(request.GET["count"]), int(request.GET["pad"])

    def pieces():
        thread = threading.get_ident()
        with transaction.atomic():
            for number in range(count):
                inside = connection.in_atomic_block and threading.get_ident() == thread
                users = User.objects.count()
                yield f"{number} {inside} {users};" + "." * pad

    return StreamingHttpResponse(pieces(), content_type="text/plain")


def clean(request):
    """Whether the thread that serves this request has a transaction open: it must not."""
    return HttpResponse(str(connection.in_atomic_block))


urlpatterns = [
    path("", index),
    path("rows", rows),
    path("clean", clean),
    path("admin/", admin.site.urls),
]

application = StaticFilesHandler(WSGIHandler())
