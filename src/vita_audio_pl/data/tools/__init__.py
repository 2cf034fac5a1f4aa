"""Looking at prepared data: what there is, whether it is whole, how it would be trained on."""
