"""The kernels that are written in Triton, and what launches them; `neurostorm_bids.model.scan.triton` offers them.

kernels        the scan, and the Mamba layer between its outer projections
block_kernels  what lies around the layer in a block, and the ends of a stage
launch         sizes of programs, and how a kernel is started
recurrence     the scan on tensors, with its gradients
mixer          the layer on tensors, with its gradients
blocks         whole blocks and the whole encoder, in inference
"""
