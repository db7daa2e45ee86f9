// Union-find whose roots are the smallest node of their set, so that the order of unions does not matter.
//
// Nodes are counted from 1: `parents[node - 1]` is a node of the same set that is not larger, and the root is its own.
// Many threads find and unite at once. They may read a parent that another has just replaced: it is still of the set.

// Return the root of a node.
template <class Node>
__device__ inline Node find_root(const volatile Node* parents, Node node) {
    for (Node parent = parents[node - 1]; parent != node; parent = parents[node - 1]) node = parent;
    return node;
}

// Return the root of a node, and leave each node on the way at its parent's parent. Where another thread has shortened
// its way more, that is undone: whoever needs parents that are roots does this no longer.
template <class Node>
__device__ inline Node shorten_way(volatile Node* parents, Node node) {
    Node parent = parents[node - 1];
    while (parent != node) {
        const Node next = parents[parent - 1];
        if (next != parent) parents[node - 1] = next;
        node = parent;
        parent = next;
    }
    return node;
}

// Unite the sets of two nodes.
template <class Node>
__device__ inline void unite_sets(volatile Node* parents, Node a, Node b) {
    a = shorten_way(parents, a);
    b = shorten_way(parents, b);
    while (a != b) {
        if (a < b) {
            Node larger = b;
            b = a;
            a = larger;
        }
        Node parent = atomicCAS((Node*)parents + (a - 1), a, b);
        if (parent == a) return;
        // Another thread has hung this root onto its parent meanwhile: that is what is to be united with `b`.
        a = shorten_way(parents, parent);
        b = shorten_way(parents, b);
    }
}
