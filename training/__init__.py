"""Train, export, calibrate and evaluate models for `imgsafety`. Imports it; is never imported by it."""
