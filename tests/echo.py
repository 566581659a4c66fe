"""A child of `benchmarks.beside`, for its test."""

from benchmarks.beside import serve

if __name__ == "__main__":
    serve(lambda job: lambda request: {"product": job["factor"] * request["number"]})
