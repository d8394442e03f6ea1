"""Expert loops that Dynamo cannot capture: recognise them by running them, and say them as one op.

A loop over the experts that were chosen depends on data, so no graph of it can be captured. But it
can be run on a few tokens and its operations written down: the trace shows which weights belong to
which expert and what an expert computes. From that comes one call of ``modes_fx::experts``, which
is used only where it gives the numbers of the loop.
"""
