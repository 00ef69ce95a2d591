"""A kitchen that is always busy: prints what becomes of its orders, a JSON line for each step.

python kitchen.py | repl-broker publish kitchen -
"""

import argparse
import itertools
import json
import random
import time
from contextlib import suppress

ITEMS = ("tea", "coffee", "soup", "pancakes", "toast")
STEPS = ("waiting", "making", "ready", "done")


def steps(orders, open_orders_max=8):
    """Every step of ``orders`` orders, in a random order that keeps each order's own."""
    numbers = itertools.islice(itertools.count(1), orders)
    kitchen = {}  # number: item and how far it is
    while True:
        number = next(numbers, None) if len(kitchen) < open_orders_max else None
        if number is not None and (not kitchen or random.random() < 0.4):
            kitchen[number] = [random.choice(ITEMS), 0]
        elif kitchen:
            numbers = itertools.chain([number], numbers) if number is not None else numbers
            number = random.choice(list(kitchen))
            kitchen[number][1] += 1
        else:
            return
        item, step = kitchen[number]
        yield {"order": number, "item": item, "state": STEPS[step]}
        if STEPS[step] == "done":
            del kitchen[number]


def main():
    options = argparse.ArgumentParser(description="A kitchen that is always busy.")
    options.add_argument("--orders", type=int, help="how many, in all (default: no end)")
    options.add_argument("--pause", type=float, default=0.7, help="seconds between steps")
    given = options.parse_args()
    for step in steps(given.orders):
        print(json.dumps(step), flush=True)
        time.sleep(given.pause)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt, BrokenPipeError):
        main()
