import os

__version__ = "0.1.0"

# TensorFlow alone computes with oneDNN only where a processor has AVX-512 VNNI or AMX, and trains
# at half the speed elsewhere
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
