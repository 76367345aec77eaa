//! `pinfold-node` tells a Kubernetes node's kubelet and container engine of Pinfold's CPU lists. It
//! is a program of its own: what every start of a container runs has none of its crates.

fn main() {}
