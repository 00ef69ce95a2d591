"""What a node can do, measured beside what it stands on.

``python -m benchmarks`` makes the table of docs/explanation/performance.md.

    __main__  options, the order of things
    suite     what is measured
    peers     servers as processes: ours, bare ASGI on Hypercorn (bare.py)
    commits   SQLite commits alone
    load      compiles and runs load.c, the load generator
    report    conditions, medians, ratios, the table

Linux only: it reads /proc, and the generator is an epoll loop.
"""
