"""Depth estimators: networks that estimate how near each point of a picture is.

The modules in reading order: small (the mini's estimator, and load_estimator for both estimators),
dpt (DPT-hybrid, the estimator of the official models) and dpt_names (the names of DPT-hybrid's
tensors in MiDaS and transformers).
"""
