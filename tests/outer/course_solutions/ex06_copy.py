import copy


def build(block):
    trainable = copy.deepcopy(block)
    block.requires_grad_(False)
    return block, trainable, trainable.parameters()
