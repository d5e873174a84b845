"""The graphs of a call as TensorFlow runs them."""

from tensorflow.python.eager import context


def nodes_as_executed(function, *arguments):
    """Nodes of all graphs that a call ran, as TensorFlow's optimiser left them."""
    context.context().enable_graph_collection()
    try:
        function(*arguments)
        graphs = [g.post_optimization_graph for g in context.context().export_run_metadata().function_graphs]
    finally:
        context.context().disable_graph_collection()
    return [
        node
        for graph in graphs
        for nodes in (graph.node, *(function.node_def for function in graph.library.function))
        for node in nodes
    ]
