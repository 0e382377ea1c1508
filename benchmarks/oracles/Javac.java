// javac's definitions of Java files: java Javac.java ROOT < paths, one a line.
// Writes "path, kind, name, first offset, offset behind, first line, last line", tabs between;
// offsets are UTF-16; kind is ERROR for a file that javac cannot parse.

import com.sun.source.tree.ClassTree;
import com.sun.source.tree.CompilationUnitTree;
import com.sun.source.tree.MethodTree;
import com.sun.source.tree.Tree;
import com.sun.source.util.JavacTask;
import com.sun.source.util.SourcePositions;
import com.sun.source.util.TreeScanner;
import com.sun.source.util.Trees;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.stream.Collectors;
import javax.tools.Diagnostic;
import javax.tools.JavaCompiler;
import javax.tools.JavaFileObject;
import javax.tools.StandardJavaFileManager;
import javax.tools.ToolProvider;

public class Javac {
  private static final PrintStream OUT = new PrintStream(System.out, true, StandardCharsets.UTF_8);

  public static void main(String[] arguments) throws IOException {
    Path root = Path.of(arguments[0]);
    var input = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    List<Path> paths = input.lines().map(root::resolve).collect(Collectors.toList());
    Set<String> broken = new HashSet<>();
    JavaCompiler compiler = ToolProvider.getSystemJavaCompiler();
    StandardJavaFileManager files =
        compiler.getStandardFileManager(null, null, StandardCharsets.UTF_8);
    JavacTask task =
        (JavacTask)
            compiler.getTask(
                null,
                files,
                diagnostic -> {
                  JavaFileObject source = (JavaFileObject) diagnostic.getSource();
                  if (diagnostic.getKind() == Diagnostic.Kind.ERROR && source != null) {
                    broken.add(source.getName());
                  }
                },
                List.of("-proc:none"),
                null,
                files.getJavaFileObjectsFromPaths(paths));
    Iterable<? extends CompilationUnitTree> units = task.parse();
    SourcePositions positions = Trees.instance(task).getSourcePositions();
    for (CompilationUnitTree unit : units) {
      String name = unit.getSourceFile().getName();
      Path path = root.relativize(Path.of(name));
      if (broken.contains(name)) {
        OUT.println(path + "\tERROR\t\t0\t0\t0\t0");
      } else {
        new Definitions(path.toString(), unit, positions).scan(unit, null);
      }
    }
  }

  private static class Definitions extends TreeScanner<Void, Void> {
    private final String path;
    private final CompilationUnitTree unit;
    private final SourcePositions positions;
    private String around = "";

    Definitions(String path, CompilationUnitTree unit, SourcePositions positions) {
      this.path = path;
      this.unit = unit;
      this.positions = positions;
    }

    @Override
    public Void visitClass(ClassTree node, Void nothing) {
      String outer = around;
      around = node.getSimpleName().toString();
      if (!around.isEmpty()) {
        write(node, node.getKind().name(), around);
      }
      super.visitClass(node, nothing);
      around = outer;
      return null;
    }

    @Override
    public Void visitMethod(MethodTree node, Void nothing) {
      String name = node.getName().toString();
      write(node, "METHOD", name.equals("<init>") ? around : name);
      return super.visitMethod(node, nothing);
    }

    private void write(Tree node, String kind, String name) {
      long start = positions.getStartPosition(unit, node);
      long end = positions.getEndPosition(unit, node);
      long first = unit.getLineMap().getLineNumber(start);
      long last = unit.getLineMap().getLineNumber(end - 1);
      OUT.println(String.join("\t", path, kind, name, "" + start, "" + end, "" + first, "" + last));
    }
  }
}
