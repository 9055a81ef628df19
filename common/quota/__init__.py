"""What the whole fleet may ask of models: limits shared per provider key, and hard budgets.

`gate.py` is what a process asks before each call and tells after it; the Lua beside it decides, in
one place for all processes. `budgets.py` is how people and `fleet up` change and read budgets.
"""
