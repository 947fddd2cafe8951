"""Files that others wrote: nothing in them runs, and what is made of them is bounded by their own size.

torch and safetensors are not asked to open them: what they promise depends on the version a person has (before torch
2.6 some archives run code in spite of `weights_only`), they make room for what a file claims, and a file that is cut
off while it is mapped into memory ends the process.
"""
