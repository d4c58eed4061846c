// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Command mkfs.erofs makes an image of an EROFS file system from a tar archive on standard input, or from
// a folder, as containerd calls the program of this name from erofs-utils. It knows what is in the layers
// of our tests: files, folders and symbolic links.
package main

import (
	"archive/tar"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path"

	"github.com/erofs/go-erofs"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "mkfs.erofs:", err)
		os.Exit(1)
	}
}

func run(args []string) (err error) {
	// containerd looks for --tar= in the help.
	flags := flag.NewFlagSet("mkfs.erofs [--tar=f] IMAGE [FOLDER]", flag.ContinueOnError)
	flags.SetOutput(os.Stdout)
	fromTar := flags.String("tar", "", "--tar=f: make it from the tar archive on standard input")
	// These have one meaning that is right here anyway.
	flags.Bool("quiet", false, "say nothing")
	flags.Bool("aufs", false, "know whiteouts of AUFS")
	flags.Bool("b4096", false, "blocks of 4096 bytes")
	flags.Bool("Enoinline_data", false, "no data beside metadata")
	flags.String("U", "", "the UUID, which is not written")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	image, err := os.Create(flags.Arg(0))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, image.Close()) }()
	w := erofs.Create(image)
	switch {
	case *fromTar == "f" && flags.NArg() == 1:
		err = copyTar(w, tar.NewReader(os.Stdin))
	case *fromTar == "" && flags.NArg() == 2:
		err = w.CopyFrom(os.DirFS(flags.Arg(1)))
	default:
		err = fmt.Errorf("cannot do %q", args)
	}
	return errors.Join(err, w.Close())
}

func copyTar(w *erofs.Writer, archive *tar.Reader) error {
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := add(w, header, archive); err != nil {
			return fmt.Errorf("add %s: %w", header.Name, err)
		}
	}
}

func add(w *erofs.Writer, header *tar.Header, content io.Reader) error {
	name, mode := path.Join("/", header.Name), header.FileInfo().Mode()
	switch header.Typeflag {
	case tar.TypeDir:
		if err := w.Mkdir(name, mode.Perm()); err != nil {
			return err
		}
	case tar.TypeSymlink:
		if err := w.Symlink(header.Linkname, name); err != nil {
			return err
		}
	case tar.TypeReg:
		file, err := w.Create(name)
		if err != nil {
			return err
		}
		if _, err := io.Copy(file, content); err != nil {
			return err
		}
		if err := file.Close(); err != nil {
			return err
		}
		if err := w.Chmod(name, mode); err != nil {
			return err
		}
	default:
		return fmt.Errorf("cannot make an entry of type %q", header.Typeflag)
	}
	if err := w.Chown(name, header.Uid, header.Gid); err != nil {
		return err
	}
	return w.Chtimes(name, header.ModTime, header.ModTime)
}
