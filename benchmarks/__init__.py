"""What a node can do, measured beside what it stands on and what does the like.

``python -m benchmarks`` makes the table of docs/explanation/performance.md. With
``stalled``, ``churn``, ``hostile`` or ``access`` after it, one of four runs on the node alone.

    __main__  options, the order of things
    command   what all commands have in common
    suite     what the table measures
    peers     what is measured: ours, one node and three; Nchan, Redis, NATS; bare
              ASGI on Hypercorn (bare.py)
    node      our server's command and configuration
    stalled   readers that stop reading, among many that go on
    churn     readers that come and vanish; what is left of them
    hostile   slow clients beside good readers, and a flood of publishes
    access    what tokens and TLS cost a publish and a delivery
    network   where a client can vanish in silence
    processes servers on loopback, ended by their ids
    commits   SQLite commits alone
    load      compiles and runs load.c, the load generator
    figures   medians, spread, how a table is written
    report    conditions, and the table

``python -m benchmarks.cluster`` measures three nodes; it has a package of its own.

Linux only: it reads /proc, and the generator is an epoll loop.
"""
