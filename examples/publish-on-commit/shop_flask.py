"""Flask: publish when SQLAlchemy has committed, by an event of the session.

flask --app shop_flask run --port 8002
"""

import logging

from broker import NotPublishedError, publish
from flask import Flask, request
from sqlalchemy import create_engine, event
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

app = Flask(__name__)
engine = create_engine("sqlite:///flask.db")
Session = sessionmaker(engine)
log = logging.getLogger(__name__)


# --- on commit: copy this ---


def announce(session, topic, data):
    """Publish this if, and when, the session's transaction is committed."""
    if session.in_nested_transaction():
        raise RuntimeError("announce outside of savepoints: their rollback takes nothing back")
    session.info.setdefault("announced", []).append((topic, data))


@event.listens_for(Session, "after_commit")
def publish_announced(session):
    if session.in_nested_transaction():  # only a savepoint was released
        return
    for topic, data in session.info.pop("announced", ()):
        try:
            publish(topic, data)
        except NotPublishedError:  # what was committed stands
            log.exception("not published to %s: %r", topic, data)


@event.listens_for(Session, "after_rollback")
def forget_announced(session):
    if not session.in_nested_transaction():
        session.info.pop("announced", None)


# --- the shop ---


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]
    quantity: Mapped[int]

    def shown(self):
        return {"order": self.id, "item": self.item, "quantity": self.quantity}


Base.metadata.create_all(engine)


class OutOfStockError(Exception):
    pass


def take_from_stock(order):
    if order.quantity > 10:
        raise OutOfStockError(f"there are not {order.quantity} of {order.item}")


@app.post("/orders")
def create_order():
    try:
        with Session.begin() as session:
            order = Order(item=request.json["item"], quantity=request.json["quantity"])
            session.add(order)
            session.flush()  # it has its id now
            shown = order.shown()
            announce(session, "orders", shown)
            take_from_stock(order)
    except OutOfStockError as error:
        return {"error": str(error)}, 409
    return shown, 201
