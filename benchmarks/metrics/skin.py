"""What a retouch did to skin and lips: blemishes left, texture lost or laid on, grain that sampling left behind, lip colour."""

from benchmarks.aligned_faces import face_metric
from benchmarks.metric import Range
from reward_models.verifiable import blemish_residual, lip_change, residual_grain, texture_error

BLEMISH_RESIDUAL = face_metric("blemish_residual", "blemishes left", lambda files: blemish_residual, Range(0, 2), direction="lower")
"""Share of the squared blemish error that is left: 0 all gone, 1 as in the photo; against the reference, or the skin around each spot."""
TEXTURE_ERROR = face_metric("texture_error", "texture lost or laid on", lambda files: texture_error, Range(0, 2), direction="lower")
"""Relative RMS change of the skin's fine detail away from blemishes, 0 where every pore is kept."""
SDE_GRAIN = face_metric("sde_grain", "grain laid on the skin", lambda files: residual_grain, Range(0, 10), direction="lower")
"""In percent of full scale: the early sign of a policy that collapses to noise."""
LIP_DE = face_metric("lip_dE", "lip colour changed", lambda files: lip_change, Range(0, 100), direction="lower")
"""CIEDE2000 of the lips' broad colour between picture and photo: up to 2 is hardly seen."""
