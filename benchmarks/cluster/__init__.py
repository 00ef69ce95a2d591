"""What a cluster of three can do, measured beside etcd and NATS JetStream.

``python -m benchmarks.cluster`` makes the table of docs/explanation/cluster-performance.md.

    __main__   options, the order of things
    suite      what is measured
    trials     leaders that are killed, and leadership that is handed over
    publisher  one client that goes on through both
    nodes      what all clusters have in common
    ours       repl-broker, three nodes and one
    etcd       etcd, through its HTTP gateway
    jetstream  NATS JetStream, and the little of its protocol that it takes
    report     the conditions, and the table

The processes, the load generator and the statistics are those of benchmarks.
"""
