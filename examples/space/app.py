"""The page of this Space: recommendations of demo, with their reasons."""

from allmrec_hf.space.run_page import run_page

if __name__ == "__main__":
    run_page(
        ["demo"],
        title="What would they like next?",
        about="This demo's film world is invented: it shows the path, not a recommendation.",
    )
