"""How many tokens to draft: what steps cost, what proposals bring, and the choice from both.

Nothing here imports torch or vLLM: the scheduler inside the engine, the gateway beside it and the
command line share it.
"""
