"""Train, export, calibrate and evaluate models for `imgsafety`. Imports it; is never imported by it."""

import imgsafety  # noqa: F401  # before onnxruntime, which it tells to report to nobody
