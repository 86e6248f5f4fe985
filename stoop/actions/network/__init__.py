"""Acts on a pod's network: what is declared, and the nftables rules that follow from it, as text."""
