"""Many byte ranges of a bucket at once: limits, ranges (which are joined to one request), link
(what a request costs), ticket (one read under way), background (a thread for them), fetcher;
forecast (how many requests a speed takes).
"""
