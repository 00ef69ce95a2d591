"""What a node can do, measured beside what it stands on.

``python -m benchmarks`` makes the table of docs/explanation/performance.md.

    __main__  options, the order of things
    command   what both commands have in common
    suite     what is measured
    peers     what is measured: ours, bare ASGI on Hypercorn (bare.py)
    processes servers on loopback, ended by their ids
    commits   SQLite commits alone
    load      compiles and runs load.c, the load generator
    figures   medians, spread, how a table is written
    report    conditions, and the table

``python -m benchmarks.cluster`` measures three nodes; it has a package of its own.

Linux only: it reads /proc, and the generator is an epoll loop.
"""
