"""What an average costs here: measured beside other libraries, and beside the memory itself.

`options` says what is asked, `shapes` finds the model, `peers` wraps the libraries, `measure` times them,
`cost` is the arithmetic of bytes and the advice, `run` ties them together.
"""
