package arm

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// Builder builds and pushes images for az acr run.
type Builder interface {
	// Build runs docker build with the arguments, in a folder, with further variables of the environment.
	Build(folder string, environment, arguments []string, log io.Writer) error
	// Push pushes an image to the registry.
	Push(image string, log io.Writer) error
}

// blob is a file in the registry's storage.
type blob struct {
	content  bytes.Buffer
	complete string // metadata: the status of the run whose log it is
}

var runRoutes = []route{
	on(http.MethodPost, `.*/providers/`+registryType+`/[^/]+/listbuildsourceuploadurl`, func(s *Server, _ *call) response {
		path := "source/" + s.newID() + ".tar.gz"
		return ok(object{"relativePath": path, "uploadUrl": s.url + "/blob/" + path + "?sig=x"})
	}),
	on(http.MethodPut, `/blob/(source/.+)`, func(s *Server, c *call) response {
		b := &blob{}
		b.content.Write(c.raw)
		s.blobs[c.match[1]] = b
		return response{status: http.StatusCreated, header: blobHeader()}
	}),
	on(http.MethodHead, `/blob/(.+)`, (*Server).getBlob),
	on(http.MethodGet, `/blob/(.+)`, (*Server).getBlob),
	on(http.MethodPost, `(.*/providers/`+registryType+`/[^/]+)/schedulerun`, (*Server).scheduleRun),
	on(http.MethodPost, `(.*/providers/`+registryType+`/[^/]+/runs/([^/]+))/listlogsasurl`, func(s *Server, c *call) response {
		return ok(object{"logLink": s.url + "/blob/logs/" + c.match[2] + "?sig=x"})
	}),
}

func blobHeader() http.Header {
	return http.Header{
		"Etag": {`"0x1"`}, "Last-Modified": {time.Now().UTC().Format(http.TimeFormat)},
		"X-Ms-Blob-Type": {"BlockBlob"}, "X-Ms-Version": {"2024-01-01"}, "X-Ms-Request-Id": {"1"},
	}
}

func (s *Server) getBlob(c *call) response {
	b := s.blobs[c.match[1]]
	if b == nil {
		return response{status: http.StatusNotFound, header: http.Header{"X-Ms-Error-Code": {"BlobNotFound"}}}
	}
	content, header := b.content.Bytes(), blobHeader()
	if b.complete != "" {
		header.Set("X-Ms-Meta-Complete", b.complete)
	}
	status := http.StatusOK
	if m := blobRange.FindStringSubmatch(c.http.Header.Get("X-Ms-Range")); m != nil {
		from, _ := strconv.Atoi(m[1])
		to, _ := strconv.Atoi(m[2])
		to = min(to+1, len(content))
		from = min(from, to)
		header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, len(content)))
		content, status = content[from:to], http.StatusPartialContent
	}
	header.Set("Content-Length", strconv.Itoa(len(content)))
	if c.http.Method == http.MethodHead {
		return response{status: http.StatusOK, header: header}
	}
	return response{status: status, header: header, body: bytes.Clone(content)}
}

var blobRange = regexp.MustCompile(`^bytes=(\d+)-(\d+)$`)

// scheduleRun starts the steps of an uploaded task file. They end before or after the
// response, as the caller cannot tell.
func (s *Server) scheduleRun(c *call) response {
	registry := s.resources[c.match[1]]
	if registry == nil {
		return notFound(c.match[1])
	}
	source := s.blobs[text(c.body["sourceLocation"])]
	if source == nil {
		return failure(http.StatusBadRequest, "BadRequest", "The source %v was not uploaded.", c.body["sourceLocation"])
	}
	values := map[string]string{}
	given, _ := c.body["values"].([]any)
	for _, value := range given {
		value := value.(object)
		values[text(value["name"])] = text(value["value"])
	}
	id := fmt.Sprintf("ch%d", len(s.blobs))
	log := &blob{}
	s.blobs["logs/"+id] = log
	r := &run{server: s, host: s.host(), log: log, values: values}
	archive, file := bytes.Clone(source.content.Bytes()), text(c.body["taskFilePath"])
	failing := s.failOperation(c)
	go func() {
		err := r.execute(archive, file)
		if failing != nil {
			err = errors.New(text(failing["message"]))
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		log.complete = "succeeded"
		if err != nil {
			fmt.Fprintf(&log.content, "%v\r\n", err)
			log.complete = "failed"
		}
	}()
	return ok(object{"id": registry.id + "/runs/" + id, "name": id, "type": "Microsoft.ContainerRegistry/registries/runs",
		"properties": object{"runId": id, "status": "Queued", "provisioningState": "Succeeded"}})
}

// run is one run of a task.
type run struct {
	server *Server
	host   string
	log    *blob
	values map[string]string
}

// Write appends to the log.
func (r *run) Write(p []byte) (int, error) {
	r.server.mu.Lock()
	defer r.server.mu.Unlock()
	r.log.content.Write(bytes.ReplaceAll(p, []byte("\n"), []byte("\r\n")))
	return len(p), nil
}

func (r *run) execute(archive []byte, file string) error {
	folder, err := os.MkdirTemp(r.server.folder, "source")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(folder) }()
	if err := unpack(archive, folder); err != nil {
		return fmt.Errorf("unpack the source: %w", err)
	}
	source, err := os.ReadFile(filepath.Join(folder, filepath.FromSlash(file)))
	if err != nil {
		return fmt.Errorf("read the task file: %w", err)
	}
	var task struct {
		Version string `json:"version"`
		Steps   []struct {
			Build   string   `json:"build"`
			Push    []string `json:"push"`
			Env     []string `json:"env"`
			Timeout int      `json:"timeout"`
		} `json:"steps"`
	}
	if err := yaml.UnmarshalStrict(source, &task); err != nil {
		return fmt.Errorf("task file %s: %w", file, err)
	}
	for _, step := range task.Steps {
		if step.Build != "" {
			arguments, err := r.replace(step.Build)
			if err != nil {
				return err
			}
			if err := r.build(folder, step.Env, strings.Fields(arguments)); err != nil {
				return err
			}
		}
		for _, image := range step.Push {
			image, err := r.replace(image)
			if err != nil {
				return err
			}
			if err := r.push(image); err != nil {
				return err
			}
		}
	}
	return nil
}

var placeholder = regexp.MustCompile(`\{\{\s*\.Values\.(\w+)\s*\}\}`)

func (r *run) replace(source string) (string, error) {
	var missing error
	replaced := placeholder.ReplaceAllStringFunc(source, func(found string) string {
		name := placeholder.FindStringSubmatch(found)[1]
		value, given := r.values[name]
		if !given {
			missing = fmt.Errorf("the value %s is missing", name)
		}
		return value
	})
	replaced = strings.ReplaceAll(replaced, "{{.Run.Registry}}", r.host)
	return strings.ReplaceAll(replaced, "$Registry", r.host), missing
}

func (r *run) build(folder string, environment, arguments []string) error {
	if builder := r.server.options.Builder; builder != nil {
		return builder.Build(folder, environment, arguments, r)
	}
	_, err := os.Stat(filepath.Join(folder, "Dockerfile"))
	return err
}

func (r *run) push(image string) error {
	if builder := r.server.options.Builder; builder != nil {
		return builder.Push(image, r)
	}
	r.server.mu.Lock()
	defer r.server.mu.Unlock()
	name := strings.TrimPrefix(image, r.host+"/")
	r.server.images[name] = digestOf(name)
	return nil
}

func unpack(archive []byte, folder string) error {
	zipped, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(folder)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	files := tar.NewReader(zipped)
	for {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path.Clean("/"+header.Name), "/") // az's names begin with a slash
		switch {
		case name == "":
		case header.Typeflag == tar.TypeDir:
			err = root.MkdirAll(name, 0o750)
		case header.Typeflag == tar.TypeReg:
			if err = root.MkdirAll(path.Dir(name), 0o750); err == nil {
				var content []byte
				if content, err = io.ReadAll(files); err == nil {
					err = root.WriteFile(name, content, header.FileInfo().Mode().Perm())
				}
			}
		}
		if err != nil {
			return err
		}
	}
}
