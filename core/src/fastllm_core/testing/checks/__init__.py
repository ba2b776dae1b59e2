"""What a plugin must do, as plain functions that take a `Subject` and raise AssertionError with a full sentence.

Each check stands alone; `conformance` chooses those that apply and names plugin and check in front of what they say.
"""
