"""Every option, declared once: what it is, its range and default, and what it takes to change it at run time.

``client`` and ``server`` hold the two schemas. From them come the options of the command line, the environment variables,
the keys of the configuration file, ``ClientOptions``, the tables of docs/reference/cli.md, the manual pages and the JSON
Schema (``reference``). ``sources`` reads what was given and decides what counts; ``config`` makes the objects that the
rest of the package works with.
"""
