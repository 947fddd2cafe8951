"""The U-Net's attention: layers in execution order and recorders."""
