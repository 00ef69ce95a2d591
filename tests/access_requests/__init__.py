"""Requests of all kinds, drawn at random, against a model of who may do what.

    model.py    who may do what, in a few lines that share no code with the product
    drawn.py    requests: routes, spellings, repeats, mixtures, credentials
    world.py    clusters that answer them, by both ways through the door; who watches them

What must hold: no byte of a message that the model does not grant is in any answer; nothing
is changed that it does not grant; and what it grants is not refused. ``__main__.py`` says how
to run many.
"""
