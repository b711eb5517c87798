"""Two questions, never mixed: did quantisation hurt, and did lowering break?"""

from planish.verify.again import Ask, BundleReport, verify_bundle

__all__ = ["Ask", "BundleReport", "verify_bundle"]
