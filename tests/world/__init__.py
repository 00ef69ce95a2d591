"""Whole nodes, simulated: the product's own code on disks, clocks and a network of our making.

    seams.py      chance, time and threads of the whole process, from one seed
    network.py    TCP beneath transport.py: bytes take time, links are cut, connections break
    machine.py    a host: its disk, its clock, and the node that runs on it
    clients.py    who publishes, sets, deletes, reads and follows, and what each was told
    truth.py      what the nodes applied, and what therefore may be; every check is made here
    weather.py    what goes wrong, drawn from the seed: a list that can be made shorter
    world.py      one run: form a cluster, bad weather, heal, compare, start again, compare
    mutations.py  faults that are put back, to see that they are found
    shrink.py     the shortest schedule that still fails

``python -m tests.world --seeds 100`` runs them; a seed is one run, exactly.
"""
