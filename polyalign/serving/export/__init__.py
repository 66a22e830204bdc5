"""Export of a finished run to the formats of other libraries.

Each target is a module with ``LIBRARIES``, the distributions that it needs, ``TOLERANCE``, the largest difference of a
unit vector that is accepted, and three functions: ``problem(aligner)`` says what of the model the target cannot hold,
``write(folder, source)`` writes it, and ``reload(folder)`` opens it with the library as an ``Encoder`` for each
precision. ``finish(folder, source)``, if there is one, completes the folder after it was compared.
"""
