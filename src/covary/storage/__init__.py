"""What lies on disk and proves itself: detectors, receipts, signatures."""
