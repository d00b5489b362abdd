"""Models at work: rebuilding one around averaged values, and measuring how good it is.

This is the only room that imports Keras, when a model is needed and not before, and only its module
`keras_backend` does. One model is in memory at a time.
"""
