import typer

from ops.bench.gpu.cli import gpu

if __name__ == "__main__":
    typer.run(gpu)
