"""An engine runs the networks of a model instead of PyTorch. OpenVINO is faster on a CPU.

openvino_engine.py is the only file of minisd that imports openvino.
"""
