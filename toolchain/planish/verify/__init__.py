"""Two questions, never mixed: did quantisation hurt, and did lowering break?"""

from planish.verify.again import BundleReport, verify_bundle

__all__ = ["BundleReport", "verify_bundle"]
