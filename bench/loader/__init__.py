"""`mim3d bench loader`: random crops per second, beside what people read crops with.

Files in reading order: stage (the command), options, crops (volumes, and which crops are read),
contestants (who reads them), peers (stores and readers of others), rounds (one round and its
clocks), table.
By themselves: views (`mim3d bench views`, augmented pairs on a CPU); spatial (`mim3d bench
spatial`, crops turned within their volumes) and nnssl, whose way of it stands beside.
"""
