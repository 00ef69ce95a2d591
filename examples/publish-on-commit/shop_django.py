"""Django: publish when the transaction is committed, with transaction.on_commit.

python shop_django.py runserver 8001 --noreload
"""

import json
import os
import sys
from pathlib import Path

import django
from broker import publish
from django.conf import settings
from django.core.management import execute_from_command_line
from django.core.wsgi import get_wsgi_application
from django.db import connection, models, transaction
from django.http import JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

# All of a project in one file. In yours, models, views and settings are in files of their own.
settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "django.db"}},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    LOGGING={
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"console": {"class": "logging.StreamHandler"}},
        "root": {"handlers": ["console"]},
    },
    ROOT_URLCONF=__name__,
    SECRET_KEY=os.urandom(32).hex(),
)
django.setup()


class Order(models.Model):
    item = models.CharField(max_length=100)
    quantity = models.PositiveIntegerField()

    class Meta:
        app_label = "shop"

    def shown(self):
        return {"order": self.pk, "item": self.item, "quantity": self.quantity}


class OutOfStockError(Exception):
    pass


def take_from_stock(order):
    if order.quantity > 10:
        raise OutOfStockError(f"there are not {order.quantity} of {order.item}")


@csrf_exempt  # an API, without cookies
@require_POST
def create_order(request):
    wanted = json.loads(request.body)
    try:
        with transaction.atomic():
            order = Order.objects.create(item=wanted["item"], quantity=wanted["quantity"])
            # Called after the COMMIT, and not at all after a ROLLBACK. robust: the order stands
            # even if nothing can be published; Django logs why. (A functools.partial will not
            # do here: Django logs a name that those do not have.)
            transaction.on_commit(lambda: publish("orders", order.shown()), robust=True)
            take_from_stock(order)
    except OutOfStockError as error:
        return JsonResponse({"error": str(error)}, status=409)
    return JsonResponse(order.shown(), status=201)


urlpatterns = [path("orders", create_order)]
application = get_wsgi_application()


def make_tables():
    """What `manage.py migrate` does in a project of its own."""
    if Order._meta.db_table not in connection.introspection.table_names():
        with connection.schema_editor() as editor:
            editor.create_model(Order)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    make_tables()
    execute_from_command_line(sys.argv)
