import os

__version__ = "0.1.0"

# left alone, TensorFlow computes with oneDNN only where a processor has AVX-512 VNNI or AMX; before
# TensorFlow is imported, it can be asked to do so on others, where that is faster too
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
