"""Every parser that strangers reach, fed with what strangers may send.

targets.py      a target takes bytes, and holds a parser to its word
test_fuzz.py    each target, for a bounded time: what the suite runs
python -m tests.fuzz NAME --seconds N
                one target for as long as you like; guided by coverage where atheris is installed
"""
