"""ONNX models that skip: the two ops of a rewritten program as standard ONNX operators.

``model.py`` is the door: an exported program in, an ONNX model out, in one of two forms.

- ``unrolled.py``: one branch for each expert, taken where the expert has tokens. For ONNX Runtime.
- ``blocked.py``: a loop over blocks of rows. For TensorRT-RTX, which has no branches on data.

Needs the extra ``onnx``.
"""
