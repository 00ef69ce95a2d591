"""FastAPI: publish from an outbox, so that a crash between commit and publish loses nothing.

The message is a row, written in the transaction that makes it necessary. A thread publishes the
rows in their order and deletes them. A row has its Idempotency-Key: if the process dies between
the publish and the delete, or several workers publish the same row, it is kept once.

uvicorn shop_fastapi:app --port 8003
"""

import logging
import threading
import uuid
from contextlib import asynccontextmanager
from typing import Any

from broker import NotPublishedError, RefusedError, publish
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from sqlalchemy import JSON, create_engine, delete, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

LOOK_SECONDS = 5  # how often to look for what another worker, or a crash, has left
engine = create_engine("sqlite:///fastapi.db")
Session = sessionmaker(engine)
log = logging.getLogger("uvicorn.error")


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]
    quantity: Mapped[int]


# --- the outbox: copy this ---


class Outbox(Base):
    __tablename__ = "outbox"
    id: Mapped[int] = mapped_column(primary_key=True)
    topic: Mapped[str]
    data: Mapped[Any] = mapped_column(JSON)
    key: Mapped[str] = mapped_column(default=lambda: str(uuid.uuid4()))
    refusal: Mapped[str | None]


wake, stop = threading.Event(), threading.Event()


def publish_outbox():
    """A thread: until ``stop`` is set, publish what is in the outbox."""
    while not stop.is_set():
        try:
            while publish_next():
                pass
        except NotPublishedError as error:
            log.warning("the outbox waits: %s", error)
        except Exception:
            log.exception("the outbox waits")
        wake.wait(LOOK_SECONDS)
        wake.clear()


def publish_next():
    """Publish the oldest row. False if there is none."""
    with Session() as session:
        row = session.scalar(select(Outbox).where(Outbox.refusal.is_(None)).order_by(Outbox.id))
    if row is None or stop.is_set():
        return False
    try:
        publish(row.topic, row.data, key=row.key)
    except RefusedError as error:  # for somebody to look at; the others go on
        log.error("refused, for good: %s", error)
        done = update(Outbox).where(Outbox.id == row.id).values(refusal=str(error))
    else:
        done = delete(Outbox).where(Outbox.id == row.id)
    with Session.begin() as session:
        session.execute(done)
    return True


@asynccontextmanager
async def lifespan(app):
    Base.metadata.create_all(engine)
    thread = threading.Thread(target=publish_outbox)
    thread.start()
    yield
    stop.set()
    wake.set()
    thread.join()


# --- the shop ---

app = FastAPI(lifespan=lifespan)


class NewOrder(BaseModel):
    item: str
    quantity: int


class OutOfStockError(Exception):
    pass


def take_from_stock(order):
    if order.quantity > 10:
        raise OutOfStockError(f"there are not {order.quantity} of {order.item}")


@app.post("/orders", status_code=201)
def create_order(wanted: NewOrder):
    try:
        with Session.begin() as session:
            order = Order(item=wanted.item, quantity=wanted.quantity)
            session.add(order)
            session.flush()  # it has its id now
            shown = {"order": order.id, "item": order.item, "quantity": order.quantity}
            session.add(Outbox(topic="orders", data=shown))
            take_from_stock(order)
    except OutOfStockError as error:
        raise HTTPException(409, str(error)) from error
    wake.set()
    return shown
