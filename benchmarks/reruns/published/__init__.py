"""Published failing programs, re-created from papers, studies of bugs and public threads (`SOURCES.md`).

Nothing was fitted to them: the list was fixed before any remedy was tried. Each program is training code as its source
describes it, with one fault, and a twin with the published repair. A module holds the programs of one kind.
"""
