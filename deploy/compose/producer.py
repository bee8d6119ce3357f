"""A producer of load: adds, changes and deletes customers and orders in the store ``crm``.

``docker compose run --rm producer --rate 20 --seconds 60`` makes one edit after another and prints
how many it made. Each edit is in the database, with its envelope in the outbox, before the next one
starts. The producer waits for a database that is unreachable, but not for a broker.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from typing import Any

from eventsync import Store
from eventsync.config import load
from eventsync.errors import BusUnavailableError, EventSyncError
from workers import registry
from workers.records import Customer, Order, Standing, State

CITIES = ("Oslo", "Lyon", "Porto", "Graz", "Cork", "Kraków", "Bergen", "Turin")


class Edits:
    """Random edits of the store ``crm``; ``made`` counts them by kind."""

    def __init__(self, crm: Store) -> None:
        self.crm = crm
        self.made: Counter[str] = Counter()
        self.customers = [customer.id for customer in crm.find(Customer)]
        self.orders = [order.number for order in crm.find(Order)]
        self.ordered = {order.customer for order in crm.find(Order)}

    def one(self) -> None:
        """Make one random edit."""
        kinds = [self.move, self.move, self.pay, self.progress, self.order, self.come]
        kind = random.choice([*kinds, self.go] if self.free else kinds)
        kind()
        self.made[kind.__name__] += 1

    def move(self) -> None:
        customer = self.crm[Customer, random.choice(self.customers)]
        customer.city, customer.standing = random.choice(CITIES), random.choice(list(Standing))
        self.crm.update(customer)

    def pay(self) -> None:
        customer = self.crm[Customer, random.choice(self.customers)]
        customer.balance += Decimal(random.randrange(-5000, 9000)) / 100
        self.crm.update(customer)

    def progress(self) -> None:
        order = self.crm[Order, random.choice(self.orders)]
        order.state = random.choice(list(State))
        self.crm.update(order)

    def order(self) -> None:
        number, customer = max(self.orders) + 1, random.choice(self.customers)
        total = Decimal(random.randrange(500, 90_000)) / 100
        self.crm |= Order(number=number, customer=customer, placed=date.today(), total=total)
        self.orders.append(number)
        self.ordered.add(customer)

    def come(self) -> None:
        id = max(self.customers) + 1
        city = random.choice(CITIES)
        self.crm |= Customer(
            id=id, name=f"Customer {id}", city=city, standing=Standing.ACTIVE, since=date.today()
        )
        self.customers.append(id)

    @property
    def free(self) -> list[int]:
        """The customers without orders; the database refuses to delete the others."""
        return [id for id in self.customers if id not in self.ordered]

    def go(self) -> None:
        id = random.choice(self.free)
        found = self.crm.get(Customer, id)
        # ``None`` if an earlier attempt deleted it and its answer was lost.
        if found is not None:
            self.crm.remove(found)
        self.customers.remove(id)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=20.0, help="the limit of edits a second")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to run")
    options = parser.parse_args()
    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: stopped.append(number))
    stores = registry()
    with load().bus() as bus, stores["crm"].open(publisher=bus) as crm:
        edits = patiently(lambda: Edits(crm), stopped)
        began = time.monotonic()
        due = began
        while not stopped and time.monotonic() - began < options.seconds:
            patiently(edits.one, stopped)
            due += 1 / options.rate
            time.sleep(max(0.0, due - time.monotonic()))
        seconds = time.monotonic() - began
        try:
            crm.flush()
        except BusUnavailableError as error:
            print(f"{error.message}; the relay or a worker will publish the outbox later")
        waiting = crm.backlog().waiting
    print(json.dumps({**edits.made, "seconds": round(seconds, 1), "waiting": waiting}))


def patiently(attempt: Callable[[], Any], stopped: list[int]) -> Any:
    """Call ``attempt`` until the database answers; return its result."""
    while True:
        try:
            return attempt()
        except EventSyncError as error:
            if not error.retryable or stopped:
                raise
            print(f"retrying in a second: {error}")
            time.sleep(1.0)


if __name__ == "__main__":
    main()
