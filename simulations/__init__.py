"""The harness: federations and experiments on this machine (cli, runner).

What commands share: settings, display, results, engines and, above them, emulation. Each other
package is a command of its own, or two that go together; they don't know each other.
"""
