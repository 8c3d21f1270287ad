"""report.html: what was asked and found, on one self-contained page, made from files alone."""
