//! The `godwit` binary, built where the tests find it.

fn main() -> std::process::ExitCode {
    godwit::cli::main()
}
